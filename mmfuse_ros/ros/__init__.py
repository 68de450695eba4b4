"""The only code that knows rclpy and message packages."""
