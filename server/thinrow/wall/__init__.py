"""The wall: a model of what fat and thin rows cost in bytes, compared with measured bytes."""
