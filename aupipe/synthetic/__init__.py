"""A FACS corpus of rendered people who do not exist, written in the real corpora's own layouts."""
