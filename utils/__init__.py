"""The ground floor: files, folders, locks, devices, provenance. Nothing of ours lies below it."""
