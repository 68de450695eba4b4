"""From samples to windows: buffers, the synchroniser and the window's grid."""
