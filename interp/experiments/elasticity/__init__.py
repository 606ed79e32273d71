"""The experiments on paper C's claims (elasticity), one file each, named by their id."""

from interp.experiments.elasticity import c_e1_resistance, c_e2_rebound, c_e3_return, c_e6_methods, c_e7_roles, c_e8_theory

__all__ = ["c_e1_resistance", "c_e2_rebound", "c_e3_return", "c_e6_methods", "c_e7_roles", "c_e8_theory"]
