"""Values for stored events that came later, published as the next generation."""
