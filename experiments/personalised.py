"""The page of personalised methods and methods for skewed labels: python -m experiments.personalised OUT.

experiments/pages.py makes the page.
"""

from experiments.pages import Page, Section

PAGE = Page(
    name="personalised",
    title="Personalised methods, and methods for skewed labels",
    introduction="Runs are on MNIST, FedIns on the digits of scikit-learn, with three seeds.",
    sections=(
        Section(
            "FN and LN: normalised networks",
            "normalise/normalise.sweep.yaml",
            "eval/accuracy",
            "Ten clients with one or two classes each. Accuracy on the server's test set.",
            plotted=tuple(
                f"{method} {setting}"
                for method in ("FedAvg", "FN", "LN")
                for setting in ("1 class lr 0.05", "2 classes lr 0.01")
            ),
        ),
        Section(
            "FedHyper: rates that adapt",
            "fedhyper/fedhyper.sweep.yaml",
            "eval/accuracy",
            "Ten clients with Dirichlet(0.5) label skew. The server's rate starts at 0.2, a bad choice, or at 1. "
            "Accuracy on the server's test set.",
        ),
        Section(
            "FedETF: a fixed classifier",
            "fedetf/fedetf.sweep.yaml",
            "eval/accuracy",
            "Ten clients with Dirichlet(0.05) label skew. Accuracy on the server's test set.",
        ),
        Section(
            "FedLoGe: a global long tail",
            "fedloge/fedloge.sweep.yaml",
            "eval/accuracy",
            "Ten clients with Dirichlet(0.5) label skew; the rarest class has a hundredth of the images of the most "
            "frequent one. Accuracy of the realigned head (eval), of the frame and of the head as trained, on a "
            "balanced test set.",
        ),
        Section(
            "GPFL: a conditional valve",
            "gpfl/gpfl.sweep.yaml",
            "clients/accuracy_mean",
            "PFLlib's partition of MNIST, 20 clients. Accuracy on each client's own test rows.",
        ),
        Section(
            "FedSelect: single entries of the model are private",
            "fedselect/fedselect.sweep.yaml",
            "clients/accuracy_mean",
            "20 clients with two classes and at most 15 images per class. Accuracy on each client's own test rows.",
        ),
        Section(
            "PeFLL: models for clients that never train",
            "pefll/pefll.sweep.yaml",
            "clients/accuracy_mean",
            "80 clients with two classes each; accuracy on the test rows of 30 clients that never train.",
        ),
        Section(
            "FedBR: pseudo-data against local bias",
            "fedbr/fedbr.sweep.yaml",
            "eval/accuracy",
            "Ten clients with Dirichlet(0.1) label skew. Accuracy on the server's test set.",
        ),
        Section(
            "FedIns: adapters for each sample",
            "fedins/fedins.sweep.yaml",
            "clients/accuracy_mean",
            "Eight clients with digits rotated by 0, 90, 180 or 270 degrees; the body is trained on upright digits. "
            "Accuracy on each client's own test rows.",
        ),
    ),
)

if __name__ == "__main__":
    PAGE.main()
