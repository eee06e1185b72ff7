"""Detection sets: reading, drawing, downloading, and batches of them."""
