"""The page of methods whose server makes something: python -m experiments.server_made OUT.

experiments/pages.py makes the page.
"""

from experiments.pages import Page, Section

PAGE = Page(
    name="server_made",
    title="The server makes something: images, groups of tasks, prototypes, weights of adapters",
    introduction="Each section is a method of its own; the README of its folder has the bars and what was missed.",
    sections=(
        Section(
            "TARGET on digits: images of old classes",
            "target/digits.sweep.yaml",
            "stream/acc",
            "Five tasks of two classes each, one after the other, by five clients. The server makes images of the old "
            "classes from its model alone, and clients replay them. Accuracy on all classes so far; stream/fgt is the "
            "mean loss of accuracy on old tasks. With a masked loss, the outputs of old classes get no gradient.",
            plotted=("fine-tuning", "FedLwF", "TARGET", "TARGET generator", "masked fine-tuning", "masked FedLwF"),
        ),
        Section(
            "TARGET on MNIST, with a generator",
            "target/mnist.sweep.yaml",
            "stream/acc",
            "The same with images of 14 x 14 and a generator at the server. The weight 5 was tried after the test "
            "figures of weight 25 (the paper's) had been seen.",
        ),
        Section(
            "MAS: several tasks on the same inputs",
            "mas/mas.sweep.yaml",
            "eval/loss",
            "Five tasks on the digits, one of them with random labels. Ten rounds together measure who helps whom; "
            "then two groups are trained for 30 rounds. Losses on the server's test set.",
        ),
        Section(
            "ProtoFL: each client knows one class",
            "protofl/protofl.sweep.yaml",
            "clients/auroc_mean",
            "Ten clients with the images of one MNIST digit each. A private normalising flow on each client tells the "
            "own digit from the others: AUROC, mean and worst client.",
        ),
        Section(
            "Fed-MP: classes that no client has",
            "fed_mp/fed_mp.sweep.yaml",
            "adapted/accuracy",
            "Twenty Newsgroups with a frozen text encoder. Eight groups are asked for that no client has. Columns: the "
            "encoder alone, with prototypes, with the clients' gates, and with both.",
        ),
    ),
)

if __name__ == "__main__":
    PAGE.main()
