"""Published results made again, on the public interface only."""
