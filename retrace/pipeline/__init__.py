"""What every stage needs: where files lie, params.yaml, the device, how errors are told."""
