"""Save the tensors and the features of torchreid's networks; run by the interpreter of .venv-peers."""

import sys
import warnings

import torch


def main(folder, names):
    warnings.filterwarnings("ignore")
    from torchreid.reid import models

    for name in names:
        torch.manual_seed(0)
        network = models.build_model(name, num_classes=7, pretrained=False)
        images = torch.randn(4, 3, 64, 32)
        for layer in network.modules():  # other values than the initial ones
            if isinstance(layer, torch.nn.modules.batchnorm._NormBase) and layer.weight is not None:
                torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
                torch.nn.init.normal_(layer.bias, 0, 0.1)
        with torch.no_grad():
            network.train()(images)
            features = network.eval()(images)
        torch.save({"state_dict": network.state_dict(), "images": images, "features": features}, f"{folder}/{name}.pt")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
