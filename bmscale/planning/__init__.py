"""Before a run: will it fit, how fast will it be, what will it cost, which ZeRO stage."""
