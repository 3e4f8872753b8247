"""What a person runs: the `fastbert` command and what stands behind it."""
