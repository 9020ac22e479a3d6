"""What `cvars attest fetch` keeps: files in the layout of `cvars.attest.library`, for evidence at hand."""

from cvars.attest.certificates import load_certificate, read_pem
from cvars.attest.der import DerError
from cvars.attest.evidence import Evidence, SnpEvidence, TdxEvidence
from cvars.attest.library import leaf_path
from cvars.attest.remote import RemoteLibrary
from cvars.attest.snp.products import Tcb
from cvars.attest.snp.report import VCEK, SnpReport
from cvars.attest.tdx.pck import CA_KINDS, read_pck
from cvars.attest.tdx.quote import QuoteError, parse_quote


def collect(evidence: Evidence, library: RemoteLibrary) -> dict[str, bytes]:
    """Files by their path in the folder; none when nothing usable was answered or the evidence cannot be read."""
    try:
        if isinstance(evidence, SnpEvidence):
            return _snp(SnpReport.parse(evidence.report), library)
        if isinstance(evidence, TdxEvidence):
            return _tdx(evidence.quote, library)
    except (ValueError, QuoteError):
        pass
    return {}


def _snp(report: SnpReport, library: RemoteLibrary) -> dict[str, bytes]:
    line = report.line
    if line is None:
        return {}
    out: dict[str, bytes] = {}
    for certificate in library.snp_chain(line, report.signing_key):
        try:
            name = load_certificate(certificate).common_name
        except DerError:
            continue
        short = "ark" if name.startswith("ARK-") else "asvk" if name.startswith("SEV-VLEK-") else "ask"
        out[f"snp/{line}/{short}.der"] = certificate
    tcb = Tcb.parse(report.reported_tcb, line)
    leaf = library.snp_leaf(line, report.chip_id, tcb) if report.signing_key == VCEK else None
    if leaf is not None:
        out[leaf_path(line, report.chip_id, tcb)] = leaf
    crl = library.snp_crl(line, report.signing_key)
    if crl is not None:
        out[f"snp/{line}/{'vcek' if report.signing_key == VCEK else 'vlek'}.crl"] = crl
    return out


def _tdx(raw: bytes, library: RemoteLibrary) -> dict[str, bytes]:
    chain = [load_certificate(one) for one in read_pem(parse_quote(raw).pck_chain, limit=4)]
    if len(chain) != 3 or chain[1].common_name not in CA_KINDS:
        return {}
    fmspc, kind = read_pck(chain[0]).fmspc, CA_KINDS[chain[1].common_name]
    found = library.tdx_collateral(fmspc, kind)
    return {} if found is None else {f"tdx/{fmspc.hex()}-{kind}.json": found}
