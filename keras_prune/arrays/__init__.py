"""Pure arithmetic on arrays: selecting the smallest, splitting a number of zeros, joining elements."""
