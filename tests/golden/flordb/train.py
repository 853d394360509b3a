import flordb as flor
import numpy as np

lr = flor.arg("lr", 0.01)
epochs = flor.arg("epochs", 3)
flor.arg("optimizer", "adam")
flor.log("device", "cpu")
loss = 2.0
for epoch in flor.loop("epoch", range(epochs)):
    for step in flor.loop("step", range(4)):
        loss *= 1 - lr
        flor.log("loss", loss)
        if step % 2 == 0:
            flor.log("grad_norm", np.float32(1 + step + 10 * epoch))
    flor.log("val_acc", 0.5 + epoch / 10)
    flor.log("confusion", [[3, 1], [0, epoch]])
    flor.log("good", epoch > 1)
    for label in flor.loop("label", ["cat", "dog"]):
        flor.log("recall", 0.25 if label == "cat" else 0.75)
    print("epoch", epoch, "done")
flor.log("best", {"epoch": 2, "acc": 0.7})
flor.log("nothing", None)
flor.log("worst", float("nan"))
flor.log("when", "2024-05-01")
