"""The ops: each file is one op and says everything about it."""
