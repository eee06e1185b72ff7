"""How good a trained model is, and how well anchors cover a set."""
