"""What `compress` tries: candidates, how each is made, judged and remembered, and which one is tried next."""
