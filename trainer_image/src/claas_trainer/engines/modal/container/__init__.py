"""What the deployed app's containers do, apart from Modal's SDK, which `app` alone knows."""
