"""The sealed variable store on the host's pflash blob. Source: `sealed-store` SS-1..SS-26, T1..T26."""
