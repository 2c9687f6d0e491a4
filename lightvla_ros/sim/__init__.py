"""The simulated ALOHA: a MuJoCo model (aloha, renderer) without ROS, and the node that puts it on the driver's topics.

Nothing is imported here, so that the package can be inspected without MuJoCo or a GL library.
"""
