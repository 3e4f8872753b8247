"""What other libraries need of fastbert; each room imports its library, so none is imported unasked."""
