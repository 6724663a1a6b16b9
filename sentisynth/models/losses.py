"""The student's objective. B rows, K classes."""

import torch
import torch.nn.functional as F


def distillation_loss(
    student_logits_BK: torch.Tensor,
    soft_labels_BK: torch.Tensor,
    labels_B: torch.Tensor,
    *,
    alpha: float,
    temperature: float,
) -> torch.Tensor:
    """Per-row loss (B,) in nats:

        L_i = α T² KL( q_i ‖ softmax(z_i / T) ) + (1 − α) CE(z_i, y_i)

    q_i is the teacher's softmax(logits / T), computed once from logits: it is not divided by T
    again here. z_i are the student's raw logits. Hinton, Vinyals, Dean, "Distilling the knowledge
    in a neural network", 2015, section 2 (the factor T² keeps gradients comparable over T).
    """
    log_student_BK = F.log_softmax(student_logits_BK / temperature, dim=-1)
    entropy_term_BK = torch.special.xlogy(soft_labels_BK, soft_labels_BK)
    kl_B = (entropy_term_BK - soft_labels_BK * log_student_BK).sum(dim=-1)
    ce_B = F.cross_entropy(student_logits_BK, labels_B, reduction="none")
    return alpha * temperature**2 * kl_B + (1 - alpha) * ce_B
