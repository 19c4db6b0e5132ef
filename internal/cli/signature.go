// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// addCertificateFlag adds the flag that names a certificate which the cluster had before.
func addCertificateFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVar(file, "certificate", "",
		"check the signature with the certificate in `FILE`, too: the cluster.crt that the cluster had when the tarball was made")
	_ = cmd.MarkFlagFilename("certificate", "crt", "pem")
}

// signatureText says whether a tarball is signed, and by whom; empty for what is none.
func signatureText(s recovery.Signature) string {
	switch s.State {
	case recovery.SignatureValid:
		return fmt.Sprintf("valid, by the key of certificate %.12s…", s.By)
	case recovery.SignatureInvalid:
		return fmt.Sprintf("NOT VALID: the key of certificate %.12s… has not signed this", s.By)
	case recovery.SignatureUnknown:
		return fmt.Sprintf("not checked: certificate %.12s…, which it names, is not here; `global-db-inspect --certificate FILE` checks it", s.By)
	case recovery.SignatureNone:
		return "none: anybody may have made or changed it"
	}

	return ""
}

// signedText says with what an export was signed.
func signedText(r *recovery.ExportReport) string {
	if !r.Signed {
		return "not signed"
	}

	return fmt.Sprintf("signed with the cluster's key (certificate %.12s…)", r.Cluster)
}

// warnSignature tells of a tarball whose signature proves nothing.
func warnSignature(s recovery.Signature) {
	switch s.State {
	case recovery.SignatureInvalid:
		fmt.Fprintf(stderr(), "Warning: the tarball's signature is not valid: the key of certificate %.12s… has not signed this.\n", s.By)
	case recovery.SignatureNone:
		fmt.Fprintln(stderr(), "The tarball is not signed: anybody may have made or changed it.")
	case recovery.SignatureUnknown:
		fmt.Fprintf(stderr(), "The tarball's signature was not checked: certificate %.12s…, which it names, is not on this machine.\n", s.By)
	}
}

// printSignatures tells of the recovery tarballs among the sources whether they are signed.
func printSignatures(w io.Writer, r *recovery.CompareReport) {
	for _, s := range r.Sources {
		if text := signatureText(s.Signature); text != "" {
			fmt.Fprintf(w, "Signature of %s: %s.\n", s.Source, text)
		}
	}
}
