"""What each reason means, what may have caused it, and the authorised way out (`cvars store explain`)."""

from typing import Final

EXPLANATIONS: Final[dict[str, tuple[str, str, str]]] = {
    "store.tampered": (
        "Bytes that the store relies on do not verify: they were changed, moved, or are missing in the middle.",
        "The host or its storage changed the image: a flipped bit, a block from another place, a resized file, "
        "or a record that was lost in front of one that survived.",
        "Put back the image that the host had before. Otherwise: cvars store recover IMAGE --key-file KEY "
        "--out NEW, then rebase the anchor (cvars broker vm rebase): this gives up what came after the damage.",
    ),
    "store.rolled_back": (
        "Every tag matches, but the image is older than the point that the broker vouches for.",
        "The host put back an older copy or a blank disk, or its storage lost acknowledged writes. Outcome "
        '"repaired": the missing commits were replayed from the broker; "refused": they are out of reach, or '
        "--on-rollback refuse was measured into the guest.",
        "Put back the newest image. To go on with an older one on purpose: cvars broker vm rebase, audited.",
    ),
    "store.forked": (
        "The image left the anchored history: it holds commits that the broker never accepted.",
        "Two copies of one guest ran, and this image is the one that was fenced; or an old copy was continued.",
        "Use the image of the instance that the broker accepted. A wanted clone needs an operator's grant: it "
        "gets its own identity and keys.",
    ),
    "store.wrong_guest": (
        "The image belongs to another store or another VM.",
        "The host swapped images, or the guest was enrolled anew and got a new store id.",
        "Attach the image that belongs to this VM.",
    ),
    "store.wrong_key": (
        "The key does not open this image, which is otherwise what it should be.",
        "The image is sealed under a key version that the broker did not release or has destroyed, or the key "
        "file is another store's.",
        "Release the key version that `cvars store inspect` shows, or put back an image from after the rotation.",
    ),
    "store.too_old": (
        "Format, cipher suite or features of the image are below what is accepted, or unknown to this engine.",
        "An old image was put back after the floor was raised, or a newer engine wrote this one, or this "
        "system's OpenSSL does not offer the suite.",
        "Boot once with an engine and a floor that accept it: the mount rewrites the bank under the new suite.",
    ),
    "store.not_provisioned": (
        "There is no store here, and nobody granted the creation of one.",
        "A new disk, or a creation header that the broker does not know about.",
        "Enrol the VM at the broker; `cvars store create` makes the image.",
    ),
    "store.io": (
        "The medium failed, and nothing is claimed about what it holds.",
        "An I/O error, a missing file, a file without permission, or one that another guest has locked.",
        "Repair the host's storage. The store checks everything again at the next mount.",
    ),
    "anchor.leased": (
        "Another live instance of this VM holds the lease.",
        "The VM already runs, or an earlier instance stopped without handing its lease back (30 s).",
        "Wait for the lease to end, stop the other instance, or ask for a takeover if the policy allows one.",
    ),
    "anchor.rolled_back": (
        "The broker is behind the image: it vouches for less than the image proves it once knew.",
        "The broker's database was restored from a backup.",
        "Restore the newest database, or rebase the VM's anchor to the image (cvars broker vm rebase), audited.",
    ),
    "anchor.fenced": (
        "This instance lost its session: it must not serve any more.",
        "A newer instance was started, or the broker could not be reached until the lease had ended.",
        "Nothing to repair: the newer instance serves. Look for a clone if you did not start one.",
    ),
    "anchor.frozen": (
        "An operator froze this VM.",
        "Incident response: new sessions are refused, the log stays readable.",
        "Unfreeze the VM at the broker.",
    ),
    "anchor.retired": (
        "This VM was retired: its key was destroyed.",
        "Crypto-erase by an operator.",
        "None. The image can never be opened again.",
    ),
    "anchor.unreachable": (
        "The broker did not answer; what was asked for may or may not have happened.",
        "Network, proxy or broker are down, or the host blocks them.",
        "Try again: every request is safe to repeat.",
    ),
    "anchor.refused": (
        "The anchor said no.",
        "A policy, a bad statement, or a key version that is not in use.",
        "See the broker's audit log.",
    ),
}
