"""Figures 3.1 and 3.2 of Guo and Ye, and what their section on them says."""
