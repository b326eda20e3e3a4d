"""Codistillation (Anil et al., ICLR 2018): the method, free of any config."""
