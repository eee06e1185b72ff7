"""The ops in other packages. Each module here imports its package, and no other module of ssd_ops does."""
