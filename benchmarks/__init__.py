"""The measured claims: each module prints what is asked beside what it measured; `make bench` runs them all."""
