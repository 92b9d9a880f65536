"""Agents: what runs on workers. Acts on decisions that state takes; never decides itself."""
