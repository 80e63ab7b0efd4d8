"""What every stage needs: files, params.yaml, the device, a clear line."""
