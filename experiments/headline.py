"""The page of the headline methods and their baselines: python -m experiments.headline OUT (experiments/pages.py)."""

from experiments.pages import Page, Section

PAGE = Page(
    name="headline",
    title="The headline methods beside their baselines",
    introduction="",
    sections=(
        Section(
            "Prototype averaging: Federated Reconnaissance on Omniglot",
            "reconnaissance/omniglot.sweep.yaml",
            "eval/accuracy",
            "Five clients meet 100 new characters, class by class. Accuracy over all characters met so far.",
        ),
        Section(
            "Orthogonal updates: FOT on permuted digits",
            "fot/permuted_digits.sweep.yaml",
            "stream/acc",
            "Four tasks. ACC is the mean accuracy over all tasks after the last one, "
            "FGT the mean drop from each task's best.",
            matrices=("FedAvg", "FOT"),
        ),
        Section(
            "Orthogonal updates: FOT on permuted MNIST",
            "fot/permuted_mnist.sweep.yaml",
            "stream/acc",
            "Ten tasks.",
            matrices=("FedAvg", "FOT"),
        ),
        Section(
            "Orthogonal updates: FOT on split MNIST, one shared head",
            "fot/split_mnist.sweep.yaml",
            "stream/acc",
            "Five tasks of two digits.",
            matrices=("FedAvg", "FOT"),
        ),
        Section(
            "LoRA-A sharing: FedSA-LoRA on relabelled digits",
            "fedsa_lora/digits.sweep.yaml",
            "clients/accuracy_weighted",
            "Each of twenty clients permutes the labels of five classes. Accuracy on each client's own test rows.",
        ),
        Section(
            "LoRA-A sharing: FedSA-LoRA on SST-2 with MiniLM",
            "fedsa_lora/sst2.sweep.yaml",
            "clients/accuracy_weighted",
            "Ten clients with Dirichlet(0.5) label skew. Accuracy on each client's own test rows.",
        ),
        Section(
            "LoRA-A sharing: FedSA-LoRA on AG News with MiniLM",
            "fedsa_lora/ag_news.sweep.yaml",
            "clients/accuracy_weighted",
            "Ten clients with Dirichlet(0.5) label skew. Accuracy on each client's own test rows.",
        ),
    ),
)

if __name__ == "__main__":
    PAGE.main()
