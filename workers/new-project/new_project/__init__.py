"""Readings of thermometers, enriched with the place of their sensor."""
