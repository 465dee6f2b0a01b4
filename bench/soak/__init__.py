"""Soak: does work get lost, or done twice, while everything that can break is broken?"""
