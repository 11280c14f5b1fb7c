"""Where patches come from: scan files, folders of images, whole slides."""
