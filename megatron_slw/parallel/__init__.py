"""Process groups, tensor-parallel layers and the sharding record that every parameter carries."""
