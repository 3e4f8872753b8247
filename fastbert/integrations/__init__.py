"""What other libraries need of fastbert. Each room imports its library; only users import rooms."""
