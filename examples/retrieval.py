"""Have I been here before? Remember states with a label, and find the most similar ones later."""

import argparse

import torch

from mmfuse_ros import EmbeddingRetrieval, RoboticFeedbackSystem

STATES = ("gripper open", "cup grasped", "pouring", "cup placed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", default="states", help="where the states are kept")
    folder = parser.parse_args().folder

    system = RoboticFeedbackSystem()
    system.eval()
    database = EmbeddingRetrieval()
    for i, label in enumerate(STATES):
        embedding = embed(system, scene=i, noise=0)
        database.add_to_database(embedding, label, metadata={"run": 7}, stamp_ns=i * 10**9)
    database.save(folder)

    # Another process, another day: any number of readers may open the folder.
    database = EmbeddingRetrieval.load(folder)
    now = embed(system, scene=2, noise=1)
    for label, similarity in database.retrieve_similar(now, top_k=3):
        print(f"{label}: {similarity:.4f}")
    nearest = database.search(now, top_k=1, metric="l2")[0][0]
    print(f"nearest: {nearest.label!r} at {nearest.stamp_ns} ns, run {nearest.metadata['run']}")


def embed(system: RoboticFeedbackSystem, scene: int, noise: int) -> torch.Tensor:
    """Return the embedding of a simulated scene, (1, 512), with some sensor noise."""
    steady, changing = torch.Generator().manual_seed(scene), torch.Generator().manual_seed(noise)
    image = torch.rand(1, 3, 7, 7, generator=steady)
    image = torch.nn.functional.interpolate(image, size=(240, 320), mode="bilinear")
    image = image + 0.02 * torch.randn(image.shape, generator=changing)
    pressure = (1 + scene) * torch.randn(1, 1000, generator=changing)
    with torch.no_grad():
        return system(camera_images={"camera1": image.clamp(0, 1)}, pressure=pressure)


if __name__ == "__main__":
    main()
