"""A file held against the model that it came from: compared, mended, and proved again on the device."""
