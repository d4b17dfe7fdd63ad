"""What a training framework needs to hand the loss to a step; each module is an extra and is imported by name."""
