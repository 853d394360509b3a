"""A script as FlorDB's tutorial writes it, with another import: `import flordb as flor` in
its place.
"""

from random import randint

import numpy as np
import torch
import torch.nn as nn
import torch.utils.data as torchdata

import flor_plugins as flor

device = torch.device(flor.arg("device", "cuda" if torch.cuda.is_available() else "cpu"))
seed = flor.arg("seed", default=randint(1, 10000))
torch.manual_seed(seed)

hidden_size = flor.arg("hidden", default=32)
num_epochs = flor.arg("epochs", 3)
batch_size = flor.arg("batch_size", 16)
learning_rate = flor.arg("lr", 1e-2)

samples = torch.randn(240, 20, generator=torch.Generator().manual_seed(0))
dataset = torchdata.TensorDataset(samples, samples[:, :4].argmax(1))
train_dataset, test_dataset = (
    torchdata.Subset(dataset, range(160)),
    torchdata.Subset(dataset, range(160, 240)),
)
train_loader = torchdata.DataLoader(dataset=train_dataset, batch_size=batch_size, shuffle=True)
test_loader = torchdata.DataLoader(dataset=test_dataset, batch_size=batch_size)


class NeuralNet(nn.Module):
    def __init__(self, hidden_size):
        super().__init__()
        self.fc1, self.relu, self.fc2 = (
            nn.Linear(20, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, 4),
        )

    def forward(self, x):
        return self.fc2(self.relu(self.fc1(x)))


model = NeuralNet(hidden_size).to(device)
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)


def get_val_loader(fraction=0.5):
    indices = list(range(len(test_dataset)))
    np.random.shuffle(indices)
    split = int(np.floor(fraction * len(test_dataset)))
    sampler = torchdata.SubsetRandomSampler(indices[:split])
    return torchdata.DataLoader(test_dataset, sampler=sampler, batch_size=batch_size)


def validate(val_loader):
    with torch.no_grad():
        correct = total = 0
        for images, labels in val_loader:
            predicted = torch.max(model(images.to(device)), 1)[1]
            total += labels.size(0)
            correct += (predicted == labels.to(device)).sum().item()
    return int(correct), int(total)


print_every = flor.arg("print_every", 5)

with flor.checkpointing(model=model, optimizer=optimizer):
    for _epoch in flor.loop("epoch", range(num_epochs)):
        for i, (images, labels) in flor.loop("step", enumerate(train_loader)):
            outputs = model(images.to(device))
            loss = criterion(outputs, labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if (i + 1) % print_every == 0:
                flor.log("loss", loss.item())
        correct, total = validate(get_val_loader())
        flor.log("val_acc", 100 * correct / total)

correct, total = validate(test_loader)
flor.log("accuracy", 100 * correct / total)
flor.log("correct", correct)
