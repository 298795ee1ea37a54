"""What is kept of a pruned kernel, solved again on data so that layers answer as before."""
