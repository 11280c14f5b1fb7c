"""Sources of patches: scan files, folders of images, whole slides."""
