"""Scaling laws: studies made of ordinary runs, fits with certificates, forecasts frozen before they are tested."""
