"""What other libraries need of fastbert. Each room imports its library, and only users import it."""
