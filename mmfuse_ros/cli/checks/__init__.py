"""The checks of `mmfuse doctor`. Each yields findings and leaves the machine as it was."""
