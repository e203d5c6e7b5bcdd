"""The lookup of a batch: requests, their checked responses, and the answer that joins them."""
