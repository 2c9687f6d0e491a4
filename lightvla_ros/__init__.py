"""The ROS shell of LightVLA: thin lifecycle nodes around pure logic. Importing the package itself imports no ROS."""
