"""Streams: how facts move between Kafka and the state. Never decides what a fact means."""
