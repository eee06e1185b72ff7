"""What ties the ops to other packages. Each module imports its package where it is used, and only there."""
