"""The loop of FlorDB's poster: a training as it was, and two lines of flor in it."""

import torch
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

import flor_plugins as flor

torch.set_num_threads(1)
torch.manual_seed(1)
x = torch.randn(96, 6)
trainloader = DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), batch_size=16, shuffle=True)
net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))
criterion, optimizer = nn.CrossEntropyLoss(), optim.Adam(net.parameters(), lr=0.01)

flor.checkpoints(net, optimizer)
for _epoch in flor.loop("epoch", range(3)):
    for inputs, labels in flor.loop("step", trainloader):
        optimizer.zero_grad()
        loss = criterion(net(inputs), labels)
        loss.backward()
        optimizer.step()
        flor.log("loss", loss.item())
print("AFTER THE LOOP")
