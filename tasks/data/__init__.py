"""Reading and checking data sets: layouts, manifests, crops from video, image quality."""
